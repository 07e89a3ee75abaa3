"""What the tests share: the machine's KSM, daemons, child processes, waiting."""
