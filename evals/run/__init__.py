"""One evaluation from settings to results, and many of them as a sweep."""
