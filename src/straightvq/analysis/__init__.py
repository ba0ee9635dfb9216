"""What is measured on finished runs: one by one, or several side by side."""
