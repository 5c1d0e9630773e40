"""What makes a calibration: from anchors, or from an aggregate without pairs."""
