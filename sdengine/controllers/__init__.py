"""Budget controllers: how much to speculate in the next step."""
