"""Copies between two files: docs/copies.md.

ends = open_ends(source_fd, destination_fd)
result = run(make_plan(ends, Options()))
"""

from sealsvc.copies.ends import End as End
from sealsvc.copies.ends import Ends as Ends
from sealsvc.copies.ends import open_ends as open_ends
from sealsvc.copies.measured import Measured as Measured
from sealsvc.copies.plan import Options as Options
from sealsvc.copies.plan import Plan as Plan
from sealsvc.copies.plan import make_plan as make_plan
from sealsvc.copies.result import Result as Result
from sealsvc.copies.result import parse_token as parse_token
from sealsvc.copies.run import run as run
