"""ImageJ inside this process."""
