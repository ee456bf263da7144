"""Every option, declared once; importing it loads no PyTorch."""
