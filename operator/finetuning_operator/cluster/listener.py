"""A port of the operator, answered in the loop in which it works."""

from aiohttp import web


class Listener:
    """Answers on one port from its start to its stop."""

    def __init__(self, *routes: web.RouteDef) -> None:
        self._routes = routes
        self._runner: web.AppRunner | None = None

    async def start(self, port: int, *, host: str | None = None) -> int:
        """Listen on all addresses unless ``host`` names one; return the port, which 0 leaves to the system."""
        application = web.Application()
        application.add_routes(self._routes)
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
