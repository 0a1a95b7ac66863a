"""What every probe is made of: results, access to captures and weights, drawing, and the commands' shared part."""
