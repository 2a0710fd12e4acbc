"""Good requests: what goes to the upstream, what comes back, and what is counted."""


def test_a_whole_answer_comes_through(play):
    """Body, request id and outcome of a request that nothing happens to."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url)
        answer = await world.chat(headers={"x-request-id": "r-1"}, tools=[{"unknown": 1}])
        assert (answer.status, answer.text, answer.headers["x-request-id"]) == (200, "from a", "r-1")
        assert one.seen[0].headers["x-request-id"] == "r-1"
        assert one.seen[0].body["tools"] == [{"unknown": 1}]
        assert world.outcomes() == {"ok": 1}

    play(scenario)


def test_a_stream_comes_through_and_its_usage_only_if_asked_for(play):
    """The router asks for usage always and takes it out again unless the client asked."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url)
        answer = await world.chat(stream=True)
        assert answer.text == "from a" and answer.body.endswith(b"data: [DONE]\n\n")
        assert not any(chunk.get("usage") for chunk in answer.chunks)
        asked = await world.chat(stream=True, stream_options={"include_usage": True})
        assert asked.chunks[-1]["usage"]["prompt_tokens"] == 11
        assert all(seen.body["stream_options"] == {"include_usage": True} for seen in one.seen)
        assert world.outcomes() == {"ok": 2}

    play(scenario)
