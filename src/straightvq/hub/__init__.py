"""Modules saved as a folder that says what they are, and loaded from such a folder or from the Hugging Face Hub."""
