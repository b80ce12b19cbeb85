from .walkthrough import run_demo as run_demo
