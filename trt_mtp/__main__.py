"""`python -m trt_mtp`, the same as the `trt-mtp` command."""

from trt_mtp.cli import main

if __name__ == "__main__":
    main()
