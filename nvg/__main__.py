"""`python -m nvg`"""

from nvg.cli import main

main()
