"""What a run looks like: its page, and pictures of what the network has learned."""
