"""A working set that knows every row there is: the state of re-executed journals and pure tests."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from answers_from_rows import answer_from_rows

from cell.ledger.needs import Question, Relation
from cell.state import WorkingSet


class _EveryKey(defaultdict[Any, Any]):
    """Holders of all external ids, known from the start: `get` makes what is missing, too."""

    def get(self, key: Any, default: Any = None) -> Any:
        return self[key]


class _EveryGroup:
    """The groups of one relation, worked out from all rows each time they are asked for."""

    def __init__(self, rows: dict[Any, dict[str, Any]], relation: Relation) -> None:
        self._rows = rows
        self._relation = relation

    def __getitem__(self, key: tuple[str, str]) -> dict[str, Any]:
        return {
            id: row
            for id, row in sorted(self._rows[self._relation.row].items())
            if row is not None and (row.tenant_id, self._relation.key_of(row)) == key
        }


class _EveryRelation:
    def __init__(self, rows: dict[Any, dict[str, Any]]) -> None:
        self._rows = rows

    def __getitem__(self, relation: Relation) -> _EveryGroup:
        return _EveryGroup(self._rows, relation)

    def items(self) -> Iterator[Any]:
        """None has to be kept up to date."""
        return iter(())


class _EveryAnswer:
    """Answers to all questions, worked out from all rows each time they are asked."""

    def __init__(self, working_set: WorkingSet) -> None:
        self._set = working_set

    def __getitem__(self, key: tuple[str, Question]) -> Any:
        return answer_from_rows(key[1], key[0], self._set)


class CompleteWorkingSet(WorkingSet):
    def __init__(self) -> None:
        super().__init__(
            account_holders=_EveryKey(dict),
            transaction_holders=_EveryKey(dict),
            rows=defaultdict(dict),
        )
        every: Any = _EveryRelation(self.rows)
        self.related = every
        answers: Any = _EveryAnswer(self)
        self.answers = answers
