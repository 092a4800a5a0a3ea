"""Methods as they act on detectors: on FPN levels, on the student's proposals, on anchors."""
