"""`make bench`."""

import asyncio

from benchmarks.order_saga import main

asyncio.run(main())
