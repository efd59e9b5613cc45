"""What each teacher gives, and what bad ones cost."""
