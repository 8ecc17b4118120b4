import sys

from rankrl.cli import main

sys.exit(main())
