"""python -m cdcodec"""

from cdcodec.cli import main

if __name__ == "__main__":
    main(prog_name="cdcodec")
