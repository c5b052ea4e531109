"""torchrun, as `dist_train.sh` starts it: code 75 and no traceback after a signal has stopped and saved the run."""

import signal
import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules are not to be imported by their short names

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.run import main

    try:
        main()
    except SignalException as error:
        sys.exit(130 if error.sigval == signal.SIGINT else 75)  # 75 as internimage.preemption.EXIT_CODE
