"""Files written whole, locked while in use, and read with bounds."""
