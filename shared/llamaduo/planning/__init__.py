"""What a migration will take, said before it starts, and the first spec for a dataset. Pure functions, no bus.

`plan.py` puts together what `calls.py`, `hours.py`, `memory.py` and `telling.py` work out; `page.py` shows it.
`task_shape.py` looks at the rows, `draft.py` writes a spec for them.
"""
