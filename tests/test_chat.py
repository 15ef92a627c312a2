"""What the terminal shows of an answer that is still being written."""

from serve.chat import unfinished_stop


def test_the_beginning_of_a_stop_string_is_held_back():
    assert unfinished_stop("the answer is 42\n#", ["###", "\n##"]) == 2
    assert unfinished_stop("the answer is 42##", ["###"]) == 2
    assert unfinished_stop("the answer is 42", ["###"]) == 0
    assert unfinished_stop("anything", []) == 0
