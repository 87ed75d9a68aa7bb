"""Labels of support tickets, day by day."""
