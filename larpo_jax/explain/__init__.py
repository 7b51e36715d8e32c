"""What a loss is: its formula, source, needs, defaults and traps, as its own function says them."""
