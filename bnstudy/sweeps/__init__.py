"""Many runs at once: what the terminal shows of them."""
