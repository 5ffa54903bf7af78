"""What reports are made of: pictures, and means with their intervals. What a report says stands with its protocol."""
