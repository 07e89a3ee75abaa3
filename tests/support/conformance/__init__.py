"""The two implementations behind one handle, and the real processes whose memory they merge."""
