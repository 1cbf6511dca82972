import tests.conftest, sys, time, pathlib, tempfile
from tests.runs.test_latent_runs import *
import cProfile,pstats
f=pathlib.Path(tempfile.mkdtemp()); (f/"run.yaml").write_text(CONFIG)
t=time.process_time()
p=cProfile.Profile(); p.enable()
train(f,f/"whole",*sys.argv[1:]); 
p.disable()
print("CPU",time.process_time()-t)
pstats.Stats(p).sort_stats("cumtime").print_stats(45)
