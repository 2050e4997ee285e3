"""A teacher for tests: answers by a function, remembers what it was asked."""

from __future__ import annotations

from collections.abc import Callable

from services.synthesizer.asking import TeacherAnswer, TeacherPrompt


class FakeTeacher:
    """Answers each prompt with `answer(prompt)`; `asked` holds all prompts so far, in order."""

    def __init__(self, answer: Callable[[TeacherPrompt], TeacherAnswer]) -> None:
        self._answer = answer
        self.asked: list[TeacherPrompt] = []

    async def ask(self, prompts: list[TeacherPrompt]) -> list[TeacherAnswer]:
        """One answer a prompt."""
        self.asked += prompts
        return [self._answer(prompt) for prompt in prompts]
