"""`python -m kubedistill_cli`: the same as `kubedistill`."""

from kubedistill_cli.app import main

if __name__ == "__main__":
    main()
