"""What the user wrote: the experiment file."""
