"""Work that is spread over processes, and the warnings that it gives."""
