"""Images with boxes: generated, and of folders in COCO's layout."""
