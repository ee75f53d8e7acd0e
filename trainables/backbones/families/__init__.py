"""One file a family: its members, how they are adapted to small images, all that is known of it."""
