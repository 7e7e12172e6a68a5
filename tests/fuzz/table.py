"""Every fuzz target by its name. A new parser of anything from outside is one more entry in one of these lists."""

from fuzz import answers, model_files, question_files, runs, texts

TARGETS = {target.name: target for room in (texts, question_files, answers, runs, model_files) for target in room.TARGETS}
