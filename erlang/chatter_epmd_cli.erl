%% SPDX-License-Identifier: Apache-2.0
%%
%% The registry as a program, with the options of epmd:
%%
%%     erl -noinput -pa ebin -run chatter_epmd main [-port N] [-address A,...] ...
%%     erl -noinput -pa ebin -run chatter_epmd main -extra [-port N] ...
%%
%% The process of the caller starts a registry, is linked to it, and waits for its end.
-module(chatter_epmd_cli).

-export([main/0, main/1, parse/1]).

-type command() :: serve | names | dump | kill | {stop, string()}.
-type error() :: {bad_option, string()} | {missing_value, string()} | {bad_value, string()}.

%% Flags of erl that may stand on the same command line. One with two values or more is the
%% parameter of an application and may too.
-define(ERL_FLAGS,
        [root, bindir, progname, home, noshell, noinput, detached, nostick, pa, pz, path, loader,
         boot, boot_var, config, configfd, mode, hosts, id, env, heart, sname, name, setcookie,
         hidden, connect_all, dist_listen, start_epmd, no_epmd, epmd_module, epmd_port,
         erl_epmd_port, proto_dist, code_path_cache, shutdown_time, emu_type, emu_flavor]).

%% @doc Take the arguments from the command line of erl, behind `-extra' or not, and run.
-spec main() -> no_return().
main() ->
    Flags = [F || {Key, Values} = F <- init:get_arguments(),
                  not lists:member(Key, ?ERL_FLAGS), length(Values) < 2],
    Given = lists:append([["-" ++ atom_to_list(Key) | Values] || {Key, Values} <- Flags]),
    main(Given ++ init:get_plain_arguments()).

%% @doc Run with these arguments and end the VM: 0 if all went well, else 1.
-spec main([string()]) -> no_return().
main(Args) ->
    Status = case parse(Args) of
                 {ok, Command, Options} -> run(Command, chatter_epmd_config:options(Options));
                 {error, Error} ->
                     complain("~ts~n~ts", [describe(Error), usage()]),
                     1
             end,
    erlang:halt(Status).

%% @doc Read arguments.
-spec parse([string()]) -> {ok, command(), map()} | {error, error()}.
parse(Args) -> parse(Args, serve, #{}).

parse([], Command, Options) -> {ok, Command, Options};
parse(["-port", Text | Rest], Command, Options) ->
    case string:to_integer(Text) of
        {Port, ""} when Port >= 1, Port =< 65535 -> parse(Rest, Command, Options#{port => Port});
        _ -> {error, {bad_value, "-port " ++ Text}}
    end;
parse(["-address", Text | Rest], Command, Options) ->
    parse(Rest, Command, Options#{addresses => Text});
parse(["-stop", Name | Rest], serve, Options) -> parse(Rest, {stop, Name}, Options);
parse([Option], _, _) when Option =:= "-port"; Option =:= "-address"; Option =:= "-stop" ->
    {error, {missing_value, Option}};
parse(["-relaxed_command_check" | Rest], Command, Options) ->
    parse(Rest, Command, Options#{relaxed => true});
parse([Debug | Rest], Command, Options) when Debug =:= "-debug"; Debug =:= "-d" ->
    parse(Rest, Command, Options#{debug => true});
parse(["-names" | Rest], serve, Options) -> parse(Rest, names, Options);
parse(["-dump" | Rest], serve, Options) -> parse(Rest, dump, Options);
parse(["-kill" | Rest], serve, Options) -> parse(Rest, kill, Options);
parse([Option | _], _, _) -> {error, {bad_option, Option}}.

describe({bad_option, Option}) -> ["epmd: unknown or misplaced option: ", Option];
describe({missing_value, Option}) -> ["epmd: value missing: ", Option];
describe({bad_value, Text}) -> ["epmd: bad value: ", Text].

usage() ->
    "usage: chatter_epmd [-d|-debug] [-address List] [-port No] [-relaxed_command_check]\n"
    "       chatter_epmd [-port No] [-names|-dump|-kill|-stop Name]\n"
    "\n"
    "    -address List           listen on these addresses, separated by commas, and on the\n"
    "                            loopback ones (default: all; environment: ERL_EPMD_ADDRESS)\n"
    "    -port No                another port than 4369 (environment: ERL_EPMD_PORT)\n"
    "    -relaxed_command_check  permit -kill while names are registered, and -stop\n"
    "                            (environment: ERL_EPMD_RELAXED_COMMAND_CHECK)\n"
    "    -d, -debug              tell on standard error what goes on\n"
    "    -names                  list the names registered with the running registry\n"
    "    -dump                   list all that it remembers\n"
    "    -kill                   end it\n"
    "    -stop Name              take a name out".

run(serve, Options) -> serve(Options);
run(Command, #{port := Port}) ->
    case chatter_epmd_client:ask_local(Port, request(Command)) of
        {ok, Answer} -> show(Command, Answer);
        {error, unreachable} ->
            complain("epmd: Cannot connect to local epmd", []),
            1;
        {error, Reason} ->
            complain("epmd: no response from local epmd (~0p)", [Reason]),
            1
    end.

request({stop, Name}) -> chatter_epmd_wire:stop_request(unicode:characters_to_binary(Name));
request(Simple) -> chatter_epmd_wire:simple_request(Simple).

%% The texts are those of epmd.
show(kill, <<"OK", _/binary>>) -> say(<<"Killed\n">>), 0;
show(kill, <<"NO", _/binary>>) ->
    say(<<"Killing not allowed - living nodes in database.\n">>),
    1;
show({stop, _}, <<Answer:7/binary, _/binary>>) -> say([Answer, $\n]), 0;
show(Command, <<Port:32, Text/binary>>) when Command =:= names; Command =:= dump ->
    say([io_lib:format("epmd: up and running on port ~b with data:~n", [Port]), Text]),
    0;
show(_, Answer) ->
    say(["epmd: local epmd responded with <", Answer, ">\n"]),
    1.

serve(#{port := Port} = Options) ->
    {ok, Registry} = chatter_epmd_registry:start_link(anonymous),
    case chatter_epmd_registry:serve(Registry, Options) of
        ok -> receive {chatter_epmd_registry, Registry, killed} -> 0 end;
        {error, eaddrinuse} ->
            complain("epmd: there is already something listening at port ~b: ~ts",
                     [Port, occupant(Port)]),
            1;
        {error, {bad_address, Text}} ->
            complain("epmd: cannot parse IP address \"~ts\"", [Text]),
            1;
        {error, Reason} ->
            complain("epmd: cannot listen at port ~b: ~0p", [Port, Reason]),
            1
    end.

occupant(Port) ->
    case chatter_epmd_client:names({127, 0, 0, 1}, Port, 2000) of
        {ok, Port, _} -> "an epmd";
        _ -> "not an epmd"
    end.

%% Names are bytes to epmd, and go out as they came.
say(Bytes) -> ok = file:write(standard_io_bytes(), Bytes).

standard_io_bytes() ->
    _ = io:setopts(user, [{encoding, latin1}]),
    user.

complain(Format, Args) -> io:format(standard_error, Format ++ "~n", Args).
