"""What people see: a live table in a terminal, plain lines elsewhere, and the end of a job."""
