"""What people and programs look at: tables and JSON. A view never opens a file of the kernel."""
