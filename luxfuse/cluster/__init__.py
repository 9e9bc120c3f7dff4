LOCATIONS = "locations"
"""The directory of a mount's state with what is known of who has which pages: other nodes tell it anew."""
