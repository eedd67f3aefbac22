%% SPDX-License-Identifier: Apache-2.0
%%
%% The epmd of Chatter as a program that stands alone.
-module(chatter_epmd_program_SUITE).
-include_lib("common_test/include/ct.hrl").
-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).
-import(chatter_epmd_lab, [wait_until/1, free_port/0, names/1, alive2/2, alive/2, refused/1,
                           epmd/2, listing/2]).

suite() -> [{timetrap, {seconds, 180}}].

all() -> [{group, G} || {G, _, _} <- groups()].

groups() ->
    [{program, [parallel], [main_serves, main_behind_extra, main_port_taken, main_bad_arguments,
                            main_commands]}].

init_per_testcase(_Case, Config) -> [{epmd, free_port()} | Config].

end_per_testcase(_Case, _Config) -> ok.

%%% The program --------------------------------------------------------------------------

main_serves(Config) ->
    %% Given the registry as a program, expect it to serve, to list, and to end when killed.
    Port = ?config(epmd, Config),
    Program = start_main(Port, ["-port", integer_to_list(Port)]),
    {0, _, Socket} = alive(Port, alive2(<<"a">>, 1)),
    Listing = listing(Port, "name a at port 1\n"),
    ?assertEqual({0, Listing}, epmd(Port, ["-names"])),
    ?assertEqual({0, Listing},
                 chatter_epmd_lab:run_ours(["-port", integer_to_list(Port), "-names"], [])),
    gen_tcp:close(Socket),
    wait_until(fun() -> names(Port) =:= [] end),
    ?assertEqual({0, <<"Killed\n">>}, epmd(Port, ["-kill"])),
    ?assertEqual(0, receive {Program, {exit_status, S}} -> S after 10000 -> still_running end).

main_behind_extra(Config) ->
    %% Given arguments behind -extra, and the port from the environment, expect the same.
    Port = ?config(epmd, Config),
    Env = [{"ERL_EPMD_PORT", integer_to_list(Port)}],
    ?assertEqual({1, <<"epmd: Cannot connect to local epmd\n">>},
                 chatter_epmd_lab:run_ours(["-extra", "-names"], Env)),
    _ = chatter_epmd_lab:registry(Port),
    ?assertEqual({0, listing(Port, "")}, chatter_epmd_lab:run_ours(["-extra", "-names"], Env)).

main_port_taken(Config) ->
    %% Given a port that an epmd serves, expect one line and status 1.
    Port = ?config(epmd, Config),
    _ = chatter_epmd_lab:registry(Port),
    {1, Line} = chatter_epmd_lab:run_ours(["-port", integer_to_list(Port)], []),
    ?assertEqual(iolist_to_binary(io_lib:format("epmd: there is already something listening at "
                                                "port ~b: an epmd~n", [Port])), Line).

main_bad_arguments(_) ->
    %% Given arguments that are wrong, expect them named, the usage, and status 1.
    [begin
         {1, Output} = chatter_epmd_lab:run_ours(Args, []),
         ?assertMatch({match, _}, re:run(Output, Said), Args),
         ?assertMatch({match, _}, re:run(Output, "usage: chatter_epmd"), Args)
     end || {Args, Said} <- [{["-prot", "1"], "option: -prot"}, {["-port", "0"], "value: -port 0"},
                             {["-port", "x"], "value: -port x"}, {["-port"], "missing: -port"},
                             {["-extra", "names"], "option: names"},
                             {["-names", "-kill"], "option: -kill"}]],
    ?assertEqual({ok, {stop, "a"}, #{port => 1, debug => true, relaxed => true}},
                 chatter_epmd_cli:parse(["-d", "-port", "1", "-relaxed_command_check",
                                         "-stop", "a"])).

main_commands(Config) ->
    %% Given a relaxed registry as a program, expect each command to say what that of epmd says.
    Port = ?config(epmd, Config),
    Program = start_main(Port, ["-port", integer_to_list(Port), "-relaxed_command_check"]),
    {0, _, _} = alive(Port, alive2(<<"a">>, 1)),
    {0, _, _} = alive(Port, alive2(<<"b">>, 1)),
    Ours = fun(Args) -> chatter_epmd_lab:run_ours(["-port", integer_to_list(Port) | Args], []) end,
    ?assertEqual(epmd(Port, ["-dump"]), Ours(["-dump"])),
    ?assertEqual({0, <<"STOPPED\n">>}, Ours(["-stop", "a"])),
    ?assertEqual(epmd(Port, ["-stop", "a"]), Ours(["-stop", "a"])),
    ?assertEqual([{<<"b">>, 1}], names(Port)),
    ?assertEqual({0, <<"Killed\n">>}, Ours(["-kill"])),
    ?assertEqual(0, receive {Program, {exit_status, S}} -> S after 10000 -> still_running end).

start_main(Port, Args) ->
    Program = chatter_epmd_lab:start_program(
                os:find_executable("erl"),
                ["-noinput", "-pa", chatter_epmd_lab:code_path(),
                 "-run", "chatter_epmd", "main" | Args]),
    wait_until(fun() -> not refused(Port) end),
    Program.
