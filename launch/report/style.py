"""The frame of a report's page: one file without scripts, in light and dark."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ --page: #ffffff; --box: #f5f6f8; --ink: #44474c; --strong: #1b1d20; --soft: #686c73; --rule: #dfe2e6;
  --grid: #e3e5e8; --level: #85898f; --first: #2563a8; --second: #c9600c; --warn: #fff4e0; --good: #eaf3fb;
  --init: #9a86c8; --compile: #6b4fa5; --data_wait: #c2457a; --step: #2a6fb1; --save: #3f9a64; --restore: #79c396;
  --evaluation: #d9870c; --lost_work: #b3271f; --idle: #a8a8a9;
    --run0: #2563a9; --run1: #c9600d; --run2: #2f8a57; --run3: #a03a8f;
    --run4: #8a6d1a; --run5: #c0392c; --run6: #4b5bc4; --run7: #3a8f99;
  --load0: #1d2a6b; --load1: #3f63b5; --load2: #86aede; --load3: #c4d8ee; --load4: #eceae4; --load5: #f7cf9f;
  --load6: #ee9a52; --load7: #d2571f; --load8: #8c1d12; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --page: #16181b; --box: #202328; --ink: #b9bdc4; --strong: #eceef0; --soft: #959aa2; --rule: #33373d;
    --grid: #2c3036; --level: #70757d; --first: #6aa9ea; --second: #f09a52; --warn: #3a2f18; --good: #1c2a38;
    --compile: #8a70c4; --data_wait: #de6a9a; --step: #4f94d6; --lost_work: #e0574e; --idle: #5c6168;
    --run0: #6aa9ea; --run1: #f09a52; --run2: #62c08a; --run3: #d97fca;
    --run4: #cdb05a; --run5: #ef7f74; --run6: #97a3f2; --run7: #6cc4ce;
    --load0: #8fb4ff; --load1: #5d8be0; --load2: #3b62a8; --load3: #2f4468; --load4: #33363b; --load5: #6b4a28;
    --load6: #a8641f; --load7: #e0832f; --load8: #ffc27a; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 15px/1.55 system-ui, sans-serif; max-width: 74rem; margin: 0 auto; padding: 2.2rem 1.4rem 4rem;
  color: var(--ink); background: var(--page); }}
h1, h2 {{ font-weight: 650; color: var(--strong); line-height: 1.25; }}
h1 {{ font-size: 1.9rem; margin: 0; }}
h2 {{ font-size: 1.2rem; margin: 2.4rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule); }}
.lead {{ margin: .3rem 0 1.2rem; color: var(--soft); }}
.verdict, .note {{ padding: .7rem 1rem; margin: .7rem 0; border-radius: 6px; border-left: 4px solid var(--first);
  background: var(--good); color: var(--strong); }}
.verdict p {{ margin: .15rem 0; }} .note {{ border-color: var(--second); background: var(--warn); }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .7rem; margin: 1.2rem 0 0; }}
.tiles div {{ background: var(--box); border-radius: 8px; padding: .6rem .9rem; }}
dt {{ color: var(--soft); font-size: .8rem; }}
dd {{ margin: 0; font-size: 1.25rem; color: var(--strong); font-variant-numeric: tabular-nums; }}
dd small {{ display: block; font-size: .75rem; color: var(--soft); }}
.plots {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.6rem 1.8rem; }}
figure {{ margin: 0; }} .hero {{ grid-column: 1 / -1; }} svg {{ width: 100%; height: auto; display: block; }}
figcaption {{ font-weight: 600; color: var(--strong); margin-bottom: .3rem; }}
figcaption small {{ display: block; font-weight: 400; color: var(--soft); font-size: .82rem; }}
.bar {{ display: flex; height: 1.3rem; border-radius: 5px; overflow: hidden; background: var(--rule); }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: .6rem 0; }}
th {{ text-align: left; font-weight: 600; font-size: .82rem; color: var(--soft); }}
td, th {{ padding: .22rem 1.6rem .22rem 0; vertical-align: top; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }}
td:first-child {{ color: var(--soft); white-space: nowrap; }}
.ruled td, .ruled th {{ border-bottom: 1px solid var(--rule); padding-top: .4rem; padding-bottom: .4rem; }}
.ruled td:first-child {{ color: var(--strong); font-weight: 600; }}
td i {{ display: inline-block; width: .7rem; height: .7rem; border-radius: 2px; margin-right: .5rem; }}
code, pre {{ font-family: ui-monospace, monospace; }}
pre {{ background: var(--box); border-radius: 8px; padding: .9rem 1.1rem; overflow-x: auto; font-size: .82rem;
  line-height: 1.5; }}
.sample {{ white-space: pre-wrap; }}
details {{ margin: 1.6rem 0 0; }}
summary {{ cursor: pointer; font-weight: 650; font-size: 1.05rem; color: var(--strong); padding: .3rem 0; }}
h3 {{ font-size: 1rem; color: var(--strong); margin: 1.6rem 0 .4rem; overflow-wrap: anywhere; }}
.runs {{ display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: .6rem 0 1.2rem; overflow-wrap: anywhere; }}
.runs i {{ display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin-right: .5rem; }}
.loads > div {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr));
  gap: 1.1rem 1.4rem; }}
.load {{ height: clamp(4.5rem, calc(var(--experts) * 3px), 24rem); border-radius: 3px; }}
.loads .runs {{ font-size: .82rem; margin: .3rem 0 .7rem; }}
.loads figure small {{ color: var(--soft); font-size: .8rem; }}
.loads i {{ border: 1px solid var(--rule); }}
.narrow {{ display: none; }}
@media (max-width: 40rem) {{
  body {{ padding: 1.2rem .8rem 3rem; }}
  .broad {{ display: none; }} .narrow {{ display: block; }}
  td, th {{ padding-right: .9rem; overflow-wrap: break-word; }}
}}
</style>
</head>
<body>
{body}
</body>
</html>
"""
# The content security policy is a second defense; escaping already prevents scripts.
