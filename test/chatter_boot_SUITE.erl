%% How nodes come up: from a checkout, in a rebar3 release and in a Mix project and release,
%% both in embedded mode; and how a node that cannot come up says so.
%%
%% The projects in test/projects are built in scratch directories, with a copy of Chatter's
%% sources and the NIF that is built already, and without network.
-module(chatter_boot_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([suite/0, all/0, groups/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-export([checkout/1, rebar_release/1, mix_project/1, mix_release/1]).
-export([nif_missing/1, nif_broken/1, port_taken/1, unknown_key/1, ill_typed_value/1,
         ill_typed_variable/1, address_absent/1, key_short/1, key_published/1]).

-define(BOOT_TIMEOUT_MS, 20000).
-define(BUILD_TIMEOUT_MS, 120000).
-define(REFUSAL_TIMEOUT_MS, 10000).

suite() -> [{timetrap, {minutes, 5}}].

all() -> [{group, boot}, {group, refusal}].

groups() ->
    [{boot, [], [checkout, rebar_release, mix_project, mix_release]},
     {refusal, [], [nif_missing, nif_broken, port_taken, unknown_key, ill_typed_value,
                    ill_typed_variable, address_absent, key_short, key_published]}].

init_per_suite(Config) ->
    case filelib:is_regular(chatter_cluster:native_lib()) of
        true -> Config;
        false -> {fail, {not_built, chatter_cluster:native_lib()}}
    end.

end_per_suite(_Config) -> ok.

end_per_testcase(_Case, _Config) -> chatter_cluster:stop_all().

%%% Nodes that come up

%% Given two nodes started from the checkout as the README says, expect that they meet.
checkout(_Config) ->
    A = chatter_cluster:start(a),
    B = chatter_cluster:start(b),
    meet(A, B),
    ?assertEqual(interactive, chatter_cluster:call(A, code, get_mode, [])).

%% Given a rebar3 release with its own emulator in embedded mode, where no module is loaded
%% on demand and no -on_load function runs before distribution, expect that two nodes of it
%% meet and that both have what sys.config says.
rebar_release(Config) ->
    Dir = scratch(rebar_release, Config),
    App = copy_project("rebar_release", filename:join(Dir, "app")),
    copy_chatter(filename:join([App, "_checkouts", "chatter"])),
    build("rebar3", ["release"], App, []),
    Release = filename:join([App, "_build", "default", "rel", "house"]),
    ?assertMatch([_], filelib:wildcard(Release ++ "/lib/chatter-*/priv/libchatter_nif.so")),
    [A, B] = [chatter_cluster:start(Name, #{carrier => release, exec => release_erl(Release)})
              || Name <- [a, b]],
    meet(A, B),
    #{node := Node} = B,
    ?assertEqual({Node, embedded}, chatter_cluster:call(A, erpc, call, [Node, house, who, []])),
    ?assertEqual({ok, 200}, chatter_cluster:call(B, application, get_env, [chatter, hello_ms])).

%% Given a Mix project with Chatter as a path dependency, expect that two nodes started with
%% `elixir -S mix run` meet, and that no package of Hex is asked for on the way.
mix_project(Config) ->
    {App, Env} = mix_app(mix_project, Config),
    build("mix", ["compile"], App, Env),
    Ebin = filename:join([App, "_build", "prod", "lib", "chatter", "ebin"]),
    Elixir = fun(Name, Code) ->
                     {["--sname", short_name(Name), "--cookie", chatter_cluster:cookie(),
                       "--erl", "-pa " ++ Ebin ++ " -proto_dist chatter -epmd_module "
                       "chatter_epmd -start_epmd false -chatter multicast false",
                       "-S", "mix", "run", "--no-compile", "-e", Code], #{cd => App, env => Env}}
             end,
    {ArgsB, Opts} = Elixir(b, "MixApp.wait()"),
    B = chatter_cluster:open("elixir", ArgsB, Opts),
    _ = chatter_cluster:await_output(B, "ready ", ?BOOT_TIMEOUT_MS),
    {ArgsA, Opts} = Elixir(a, "MixApp.meet(:\"" ++ node_name(b) ++ "\")"),
    succeeds("met ", chatter_cluster:run("elixir", ArgsA, ?BOOT_TIMEOUT_MS, Opts)).

%% Given a release of the same project in embedded mode, expect that two nodes of it meet,
%% and that its own `rpc` and `stop` reach them, over Chatter too.
mix_release(Config) ->
    {App, Env} = mix_app(mix_release, Config),
    build("mix", ["release"], App, Env),
    Bin = filename:join([App, "_build", "prod", "rel", "mix_app", "bin", "mix_app"]),
    Opts = fun(Name) -> #{env => [{"RELEASE_DISTRIBUTION", "sname"},
                                  {"RELEASE_NODE", short_name(Name)},
                                  {"RELEASE_COOKIE", chatter_cluster:cookie()} | Env]}
           end,
    Control = fun(Name, Args) -> chatter_cluster:run(Bin, Args, ?BOOT_TIMEOUT_MS, Opts(Name)) end,
    [A, B] = [chatter_cluster:open(Bin, ["start"], Opts(Name)) || Name <- [a, b]],
    Up = fun(Name) -> {0, _} = Control(Name, ["rpc", ":ok"]), true end,
    lists:foreach(fun(Name) ->
                          chatter_cluster:wait_until(fun() -> Up(Name) end, ?BOOT_TIMEOUT_MS)
                  end, [a, b]),
    succeeds("embedded", Control(a, ["rpc", "IO.puts(:code.get_mode())"])),
    succeeds("met ", Control(a, ["rpc", "MixApp.meet(:\"" ++ node_name(b) ++ "\")"])),
    lists:foreach(fun({Name, Program}) ->
                          succeeds("", Control(Name, ["stop"])),
                          {0, _} = chatter_cluster:await_exit(Program, ?BOOT_TIMEOUT_MS)
                  end, [{a, A}, {b, B}]).

%%% Nodes that say why they do not come up: one line, a code, no dump, at once

%% Given Chatter without its native library, expect a line that names the library.
nif_missing(Config) ->
    Ebin = copy_ebin(filename:join(scratch(nif_missing, Config), "chatter")),
    refused(Config, #{ebin => Ebin}, [], "libchatter_nif").

%% Given something else in the place of the native library, expect the same.
nif_broken(Config) ->
    Lib = filename:join(scratch(nif_broken, Config), "chatter"),
    Ebin = copy_ebin(Lib),
    So = filename:join([Lib, "priv", "libchatter_nif.so"]),
    ok = filelib:ensure_dir(So),
    ok = file:write_file(So, "not a library"),
    refused(Config, #{ebin => Ebin}, [], "libchatter_nif").

%% Given a port that was asked for and is in use, expect a line with the port, not another one.
port_taken(Config) ->
    {ok, Socket} = gen_tcp:listen(0, []),
    {ok, Port} = inet:port(Socket),
    refused(Config, #{chatter => [{my_port, Port}]}, [], integer_to_list(Port)).

%% Given a key that the configuration does not have, expect a line that names it.
unknown_key(Config) ->
    refused(Config, #{chatter => [{no_such_key, 1}]}, [], "no_such_key").

%% Given a value of the wrong type, expect a line that names the key.
ill_typed_value(Config) ->
    refused(Config, #{chatter => [{hello_ms, soon}]}, [], "hello_ms").

%% Given the same in an environment variable, expect a line that names key or variable.
ill_typed_variable(Config) ->
    refused(Config, #{}, [{"CHATTER_PORT", "many"}], "my_port|CHATTER_PORT").

%% Given an address that this machine does not have, expect a line with the address.
address_absent(Config) ->
    refused(Config, #{chatter => [{my_addr, "203.0.113.7"}]}, [], "203\\.0\\.113\\.7").

%% Given a key of less than 32 bytes, expect a line about the key that does not repeat it.
key_short(Config) ->
    Output = refused(Config, #{}, [{"CHATTER_KEY", "too-short-a-secret"}], "(?i)key"),
    ?assertEqual(nomatch, string:find(Output, "too-short-a-secret")).

%% Given the key from the manual of the first Chatter, expect a line about the key.
key_published(Config) ->
    refused(Config, #{}, [{"CHATTER_KEY", "01234567890123456789012345678912"}], "(?i)key").

%%% Helpers

meet(A, #{node := NodeB} = B) ->
    #{node := NodeA} = A,
    ?assertEqual(pong, chatter_cluster:call(A, net_adm, ping, [NodeB])),
    ?assertEqual(NodeB, chatter_cluster:call(A, erpc, call, [NodeB, erlang, node, []])),
    ?assertEqual([NodeA], chatter_cluster:call(B, erlang, nodes, [])),
    ?assert(lists:member(NodeA, chatter_cluster:call(B, chatter, nodes, []))).

refused(Config, Opts, Env, Pattern) ->
    Dir = scratch(refused, Config),
    Args = chatter_cluster:node_args(refused, Opts),
    {Code, Output} = chatter_cluster:run_node(Args, ?REFUSAL_TIMEOUT_MS,
                                              #{cd => Dir, env => Env}),
    ct:log("exit code ~p, output:~n~ts", [Code, Output]),
    ?assertNotEqual(timeout, Code),
    ?assertNotEqual(0, Code),
    ?assertMatch([_], string:lexemes(Output, "\r\n")),
    ?assertMatch({match, _}, re:run(Output, Pattern)),
    ?assertEqual({ok, []}, file:list_dir(Dir)),
    Output.

succeeds(Pattern, {Code, Output}) ->
    ct:log("exit code ~p, output:~n~ts", [Code, Output]),
    Code =:= 0 orelse ct:fail("exit code ~p, output:~n~ts", [Code, Output]),
    ?assertMatch({match, _}, re:run(Output, Pattern)).

node_name(Name) -> atom_to_list(chatter_cluster:node_name(Name)).

short_name(Name) -> hd(string:lexemes(node_name(Name), "@")).

%% The emulator of the release itself, as its start script calls it.
release_erl(Release) ->
    [Erl] = filelib:wildcard(Release ++ "/erts-*/bin/erl"),
    Version = filename:join([Release, "releases", "0.1.0"]),
    {Erl, ["-boot", filename:join(Version, "start"), "-mode", "embedded",
           "-config", filename:join(Version, "sys.config"),
           "-args_file", filename:join(Version, "vm.args")]}.

mix_app(Name, Config) ->
    Dir = scratch(Name, Config),
    App = copy_project("mix_app", filename:join(Dir, "app")),
    copy_chatter(filename:join(Dir, "chatter")),
    Rebar3 = os:find_executable("rebar3"),
    Env = [{"CHATTER_PATH", filename:join(Dir, "chatter")}, {"MIX_REBAR3", Rebar3},
           {"MIX_HOME", filename:join(Dir, "mix")}, {"MIX_ENV", "prod"},
           {"HEX_OFFLINE", "1"}, {"LC_ALL", "C.UTF-8"} | chatter_cluster:node_env(#{})],
    {App, Env}.

%% cargo does not run: the library that is built is the one under test.
build(Tool, Args, Dir, Env) ->
    All = [{"CHATTER_NATIVE_LIB", chatter_cluster:native_lib()}, {"REBAR_PROFILE", false},
           {"REBAR_BUILD_DIR", false}, {"REBAR_OFFLINE", "1"} | Env]
        ++ chatter_cluster:node_env(#{}),
    succeeds("", chatter_cluster:run(Tool, Args, ?BUILD_TIMEOUT_MS, #{cd => Dir, env => All})).

%% A new directory every time, also within one case.
scratch(Name, Config) ->
    Unique = integer_to_list(erlang:unique_integer([positive])),
    Dir = filename:join([proplists:get_value(priv_dir, Config),
                         atom_to_list(Name) ++ "_" ++ Unique]),
    ok = filelib:ensure_dir(filename:join(Dir, "x")),
    Dir.

copy_project(Name, To) ->
    copy_tree(filename:join([chatter_cluster:root(), "test", "projects", Name]),
              ["**/*"], To),
    To.

%% What a dependency consists of, as far as building it without cargo needs it. priv/ must
%% be there before the build, or Mix makes no link to it: hence the .gitkeep in it.
copy_chatter(To) ->
    copy_tree(chatter_cluster:root(),
              ["rebar.config", "erlang/*.erl", "erlang/*.app.src", "native/build.sh",
               "priv/.gitkeep"], To).

copy_ebin(Lib) ->
    Ebin = filename:join(Lib, "ebin"),
    copy_tree(chatter_cluster:ebin(), ["*"], Ebin),
    Ebin.

copy_tree(From, Patterns, To) ->
    Files = [File || Pattern <- Patterns, File <- filelib:wildcard(Pattern, From),
                     filelib:is_regular(filename:join(From, File))],
    ?assertNotEqual([], Files),
    lists:foreach(fun(File) ->
                          Target = filename:join(To, File),
                          ok = filelib:ensure_dir(Target),
                          {ok, _} = file:copy(filename:join(From, File), Target)
                  end, Files).
