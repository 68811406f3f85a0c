"""How a model that takes text is asked for the undesired, where nobody says what it is called."""
