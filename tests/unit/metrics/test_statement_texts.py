from tasks.metrics.statement_texts import StatementTexts

HOUR, DAY = 3600.0, 86_400.0


def _told(texts: StatementTexts, ids: set[int], found: set[int], now: float) -> None:
    texts.asked(now)
    texts.told(ids, found, now)


def test_what_is_known_is_not_asked_for_again_and_the_row_of_the_others_never():
    texts = StatementTexts(0)
    assert texts.want({0, 1, 2}, 0) == {1, 2}
    _told(texts, {1, 2}, {1, 2}, 0)
    assert texts.want({0, 1, 2, 3}, 1) == {3}


def test_a_server_is_asked_once_in_a_while_for_all_that_was_seen_meanwhile():
    texts = StatementTexts(300)
    _told(texts, set(texts.want({1}, 0)), {1}, 0)
    assert texts.want({2}, 60) == frozenset()
    assert texts.want({3}, 299) == frozenset()
    assert texts.want({4}, 300) == {2, 3, 4}


def test_a_question_without_an_answer_counts_and_is_put_again():
    texts = StatementTexts(300)
    assert texts.want({1}, 0) == {1}
    texts.asked(0)
    assert texts.want({1}, 60) == frozenset()
    assert texts.want({2}, 300) == {1, 2}


def test_a_text_that_was_not_there_is_asked_for_after_an_hour():
    texts = StatementTexts(300)
    _told(texts, set(texts.want({1, 2}, 0)), {1}, 0)
    assert texts.want({1, 2}, HOUR - 1) == frozenset()
    assert texts.want({1, 2}, HOUR) == {2}


def test_what_is_known_is_asked_for_again_after_a_day():
    texts = StatementTexts(0)
    _told(texts, set(texts.want({1}, 0)), {1}, 0)
    assert texts.want({1}, DAY - 1) == frozenset()
    assert texts.want({1}, DAY) == {1}


def test_what_was_lost_is_asked_for_again_but_not_at_once():
    texts = StatementTexts(300)
    _told(texts, set(texts.want({1}, 0)), {1}, 0)
    texts.forget()
    assert texts.want({1}, 299) == frozenset()
    assert texts.want({1}, 300) == {1}


def test_a_server_that_never_answers_fills_no_memory():
    texts = StatementTexts(0)
    for now in range(50):
        wanted = texts.want(range(1000 * now, 1000 * now + 1000), now)
    assert len(wanted) <= 21_000
