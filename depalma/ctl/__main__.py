"""`python -m depalma.ctl` is `depalmactl`."""

from depalma.ctl.main import main

main()
