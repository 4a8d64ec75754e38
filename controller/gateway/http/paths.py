"""What a path that is not served was meant to be, as far as that shows."""

from aiohttp import web

OPENAI = "/v1"
MODELS = "/v2/models/"
CHAT = f"{OPENAI}/chat/completions"
# what clients ask for by default, and can be told not to: OpenAI's newer API, and Anthropic's
OTHERS = {f"{OPENAI}/responses": CHAT, f"{OPENAI}/messages": CHAT}


def not_served(request: web.Request, docs: str) -> str:
    """The sentence: which path is meant, or that `docs` has all of them."""
    root = request.match_info.apps[0]
    resources = (route.resource for route in root.router.routes())
    known = {resource.canonical for resource in resources if resource is not None}
    meant = meant_path(request.path, known)
    hint = f"did you mean {meant}?" if meant else f"{docs} has the paths"
    return f"nothing is served at {request.path}; {hint}"


def meant_path(path: str, known: set[str]) -> str:
    """The one of `known` that `path` is, with what base URLs add or lack; empty for none.

    >>> meant_path("//v1//chat/completions/", {"/v1/chat/completions", "/v1/completions"})
    '/v1/chat/completions'
    >>> meant_path("/v2/models/ensemble/generate", {"/v2/models/qwen_mtp/generate"})
    '/v2/models/qwen_mtp/generate'
    >>> meant_path("/health", {"/v1/models"})
    ''
    """
    tidy = "/" + "/".join(part for part in path.split("/") if part)
    tidy = OTHERS.get(tidy, tidy)
    fits = [each for each in known if tidy.endswith(each.removeprefix(OPENAI) or each)]
    return max(fits, key=len, default="") or _of_the_model_here(tidy, known)


def _of_the_model_here(path: str, known: set[str]) -> str:
    """The path of a model that is served, for one of a model that isn't; empty for none."""
    if not path.startswith(MODELS):
        return ""
    _, slash, rest = path.removeprefix(MODELS).partition("/")
    generate = (each for each in known if each.startswith(MODELS) and each.endswith("/generate"))
    models = sorted(each.removesuffix("/generate") for each in generate)
    return next((model + slash + rest for model in models if model + slash + rest in known), "")
