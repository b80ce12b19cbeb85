"""From the web to folders of verified pictures and a manifest."""
