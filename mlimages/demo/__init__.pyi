from .road import walk as walk
