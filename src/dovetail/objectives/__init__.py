"""What is compared between student and teacher: one idea a file."""
