.PHONY: demo test check format down
demo test check format down:
	./ops $@
