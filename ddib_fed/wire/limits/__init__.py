"""The limits of every field, and the check of messages against them."""
